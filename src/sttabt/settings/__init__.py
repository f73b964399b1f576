"""Every setting of a run, typed. Yaml files under conf/ give the values; this file gives names, types and meaning.

Imports no torch, so that `--help` and a typo answer at once. `Settings` is the root node; `sparsity` has one
schema a method, so a key that a method does not know stops at composition.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

STAGES = ("base", "general", "approx", "prune", "evaluate", "report")

LVVIT_SIZES = ("tiny", "small", "medium", "large")

# The modules of sttabt.data that give splits, and what a batch of theirs holds.
SOURCES = {
    "digits": "images",
    "idx": "images",
    "image_folder": "images",
    "image_table": "images",
    "glue": "text",
    "text_file": "text",
}
GLUE_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
METRICS = {"classification": ("accuracy", "top5", "matthews", "f1"), "regression": ("pearson", "spearman")}

IDX_REMEDY = (
    "for Fashion-MNIST `apt-get install dataset-fashion-mnist`, or `make fashion-mnist` and"
    " dataset.path=data/fashion_mnist"
)

# What a setting of text may be, by its full key.
CHOICES: dict[str, tuple[str, ...]] = {
    "dataset.source": tuple(SOURCES),
    "dataset.task": tuple(METRICS),
    "dataset.metric": tuple(metric for metrics in METRICS.values() for metric in metrics),
    "dataset.augmentation.erasing_mode": ("const", "rand", "pixel"),
    "approx.attention_loss": ("kldiv", "tinybert"),
    "approx.start": ("interpolated", "random", "general"),
    "approx.stem": ("own", "shared"),
    "sparsity.attention": ("approximate", "actual"),
    "hardware.accelerator": ("cpu", "gpu", "cuda"),
    "hardware.precision": ("32-true", "16-mixed", "bf16-mixed"),
    "logger.kind": ("wandb_offline", "wandb_online", "tensorboard", "csv", "none"),
    "resume": ("auto", "never"),
}


@dataclass
class TrainingSettings:
    """One training stage: AdamW with linear warm-up and cosine decay."""

    epochs: int = MISSING
    epoch_share: float = 1.0  # of the training samples that an epoch sees, others in each
    learning_rate: float = MISSING
    weight_decay: float = 0.05
    final_learning_rate: float = 0.0
    warmup_epochs: float = 0.0
    grad_clip_norm: float = 0.0  # largest gradient norm, 0 = no clipping
    label_smoothing: float = 0.0
    global_batch_size: int = (
        0  # samples a weight update; 0: hardware.batch_size * accumulate_grad_batches * devices * nodes
    )
    # Images only; where both are on, half of the mixed batches get the one, half the other:
    mixup: float = 0.0  # α of the Beta(α, α) that two images are blended by, 0 = off
    cutmix: float = 0.0  # α of the Beta(α, α) that gives the area pasted from another image, 0 = off
    mix_share: float = 1.0  # of the batches that are mixed


@dataclass
class ModelSettings:
    name: str = MISSING  # the name in result rows
    timm: str = ""  # for images: a timm VisionTransformer, e.g. deit_small_patch16_224
    lvvit: str = ""  # for images: one of LVVIT_SIZES, which timm has not
    # The folder, the hub id, or package:NAME/FOLDER of an installed package, of a BERT, DistilBERT, ViT or DeiT:
    huggingface: str = ""
    width: int = MISSING  # these four say what the model is, so that a mistake shows before timm is imported
    depth: int = MISSING
    heads: int = MISSING
    patch_size: int = 0  # side in pixels; 0 for text
    pretrained: bool = False  # the weights that timm, lvvit or huggingface names, from the hub, its cache or the folder
    checkpoint: str = ""  # a local weights file instead
    sha256: str = ""  # the checkpoint's checksum, or how it begins; "": not checked
    auxiliary: bool = False  # lvvit: predict as released, with half the maximum of the second head over patches left
    fine_tune: bool = False  # the base stage trains given weights on; otherwise it uses them as they are
    arguments: dict[str, Any] = field(default_factory=dict)  # passed to timm.create_model (embed_dim, depth, ...)
    # Images only:
    crop: float = 0.875  # share of an image's shorter side that evaluation sees
    mean: list[float] = field(default_factory=list)  # a channel, of pixels in [0, 1], that images are normalised by;
    std: list[float] = field(default_factory=list)  # [] = the data set's own
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass
class AugmentationSettings:
    """Of training images, through timm: random crop, flip, RandAugment, random erasing."""

    scale: float = 0.08  # the smallest share of the area that a crop keeps; 1 = the whole image
    flip: float = 0.5  # probability of a horizontal flip
    rand_augment: str = "rand-m9-mmax9-mstd0.5-inc1"  # in timm's notation; "" = none
    erasing: float = 0.25  # probability
    erasing_mode: str = "pixel"  # const (the mean) | rand (one random colour) | pixel (random pixels)


@dataclass
class DatasetSettings:
    name: str = MISSING  # the name in result rows
    source: str = MISSING  # one of SOURCES
    path: str = ""  # where the files are, for sources that read files
    image_size: int = 0  # side in pixels after resizing; 0 for text
    channels: int = 3  # of images
    classes: int = MISSING  # 1 for regression
    task: str = "classification"  # classification | regression (text only)
    metric: str = "accuracy"  # accuracy | matthews | f1 | pearson | spearman: is reported, and choices go by it
    validation_share: float = 0.1  # of what is not for testing, stratified, split by the seed below
    split_seed: int = 0  # the test split does not depend on it
    # Images only:
    augment: bool = True
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)  # digits have their own
    mean: list[float] = field(default_factory=list)  # a channel, of pixels in [0, 1], that images are normalised by,
    std: list[float] = field(default_factory=list)  # where the model has none of its own
    broken_share: float = 0.001  # of the training images that may be unreadable: others take their place
    # Source image_table only:
    hub_id: str = ""  # a data set of the hub; path is a local copy instead
    configuration: str = ""  # of the data set on the hub, where it has several
    train_split: str = "train"
    test_split: str = "test"
    image_column: str = "image"
    # Sources image_table and of text:
    label_column: str = ""  # a class 0, 1, ..., a name of class_names, or a score
    # Text only:
    columns: list[str] = field(default_factory=list)  # of the text, or of the two texts that are read together
    class_names: list[str] = field(default_factory=list)  # in the order of the classes; empty: their numbers
    max_tokens: int = 0  # with the special ones; longer texts are truncated, counted and reported
    task_name: str = ""  # source glue: which of GLUE_TASKS
    # Source text_file only:
    header: bool = True  # the first line names the columns; without one they are called 0, 1, ...
    encoding: str = "utf-8"
    positive_above: float | None = None  # makes two classes of a score; scores exactly there are left out
    test_share: float = 0.1  # of a single file, stratified


@dataclass
class ApproxSettings:
    """The approximate attention network (METHOD section 1)."""

    factor: int = 4  # how many times narrower than the base model
    attention_loss: str = "kldiv"  # kldiv | tinybert
    start: str = "interpolated"  # interpolated | random | general: from the one distilled on `corpus`
    stem: str = "own"  # own | shared: of models with a convolutional stem, a narrow one or the base model's
    checkpoint: str = ""  # a local weights file, which is used as it is: nothing is distilled
    attention_weight: float = 1.0
    hidden_weight: float = 0.01
    embedding_weight: float = 1.0
    prediction_weight: float = 200.0  # 0 switches the term off
    training: TrainingSettings = field(default_factory=TrainingSettings)
    corpus: str = ""  # unlabelled data for start=general: distil from the given weights before they are fine-tuned
    corpus_training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass
class SparsitySettings:
    """What every method's settings have."""

    method: str = MISSING  # a module of sttabt.methods


@dataclass
class DenseSettings(SparsitySettings):
    pass


@dataclass
class RandomSettings(SparsitySettings):
    keep_ratio: float = 0.5  # share of real tokens that every layer reads, in (0, 1]
    seed: int = 0


@dataclass
class ForwardTopkSettings(SparsitySettings):
    keep_ratio: float = 0.5  # target mean over layers, in (0, 1]


@dataclass
class TomeSettings(SparsitySettings):
    merged: int = 8  # pairs that every layer but the last merges


@dataclass
class BacktrackingSettings(SparsitySettings):
    attention: str = "approximate"  # approximate | actual (a dense run of the base model: an upper bound)
    keep_ratio: float = 0.5  # share of real tokens found by every layer, in (0, 1]
    dynamic: bool = False  # choose the count from the importances instead of keep_ratio
    counts: list[int] = field(default_factory=list)  # tokens that each layer reads, of every image alike; [] = as above
    propagation: float = 0.1  # p: how much a row's own impact weighs against a plain mean


@dataclass
class TrainedSettings(SparsitySettings):
    """What the settings of every method have that trains with the base weights."""

    distillation: float = 0.0  # weight of the divergence from the frozen base model's prediction; 0 = off
    hard_from: float = 1.0  # share of the epochs after which training drops tokens and the choice is frozen; 1 = never
    ema: float = 0.0  # decay a weight update of averaged weights, which are evaluated beside the last ones; 0 = none
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass
class ConcreteSettings(TrainedSettings):
    p_logit: float = 0.0  # start of every layer's logit; lower is sparser
    propagation: float = 0.1
    temperature: float = 0.1
    lambda_p: float = 1.0e-3
    lambda_mask: float = 100.0
    distillation: float = 0.5
    p_logit_rate: float = 1.0  # learning rate of the p_logits relative to the rest


@dataclass
class LtpSettings(TrainedSettings):
    mask_weight: float = 0.1  # λ, weight of the tokens that are kept in the loss; higher is sparser
    temperature: float = 1.0e-3  # of the soft masks, in units of attention received
    hard_from: float = 0.5
    threshold_rate: float = 1.0  # learning rate of the thresholds relative to the rest


@dataclass
class HardwareSettings:
    accelerator: str = "cpu"  # Lightning's names: cpu, gpu
    devices: int = 1  # of a node that train together, a process each
    nodes: int = 1  # machines that train together
    precision: str = "32-true"  # of training, in Lightning's names: 32-true, bf16-mixed; evaluation is in float32
    compile: bool = False  # torch.compile what a step of training computes: minutes at its start, less time a step
    batch_size: int = 64  # samples a step and a device
    accumulate_grad_batches: int = 1  # steps a weight update
    workers: int = 0  # processes that load data
    threads: int = 0  # CPU threads of torch; 0 leaves torch's choice


@dataclass
class EvaluationSettings:
    batch_size: int = 64
    timing_batch: int = 32  # samples in the timed forward; a few samples are also timed one at a time
    timing_rounds: int = 15  # interleaved rounds; 0 = no timing
    gallery: int = 8  # test images or texts whose tokens are kept for drawing


@dataclass
class LoggerSettings:
    kind: str = "wandb_offline"  # wandb_offline | wandb_online | tensorboard | csv | none
    project: str = "sttabt"  # of W&B, as the next two
    entity: str = ""  # the team or user that has the project; empty: the account's own default
    upload_weights: bool = False  # put weights into W&B's artifacts; else their paths and checksums


@dataclass
class PathSettings:
    artifacts: str = MISSING  # shared by all jobs: weights, each found by what made it, and result rows
    output: str = MISSING  # this job's own folder


@dataclass
class Settings:
    name: str = MISSING  # the experiment's name
    model: ModelSettings = field(default_factory=ModelSettings)
    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    sparsity: Any = MISSING  # a SparsitySettings; its schema is chosen with the method
    approx: ApproxSettings = field(default_factory=ApproxSettings)
    hardware: HardwareSettings = field(default_factory=HardwareSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    trainer: dict[str, Any] = field(default_factory=dict)  # other arguments of Lightning's Trainer
    callbacks: dict[str, Any] = field(default_factory=dict)  # of Lightning, by a name of one's choice, with `_target_`
    paths: PathSettings = field(default_factory=PathSettings)
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    skip_approx: bool = False  # use the approximate network that is there; an error if there is none
    resume: str = "auto"  # auto | never: go on with an interrupted stage, or begin it again
    seed: int = 0
    fast_dev_run: int = 0  # > 0: so many steps a stage, on as many batches; for tests


TRAININGS = {  # where a stage's training is set
    "base": "model.training",
    "general": "approx.corpus_training",
    "approx": "approx.training",
    "prune": "sparsity.training",
}


def training_of(settings: Settings, stage: str) -> TrainingSettings | None:
    """The settings of a stage's training; None where the method trains nothing."""
    node, _, name = TRAININGS[stage].partition(".")
    return getattr(getattr(settings, node), name, None)


def update_size(settings: Settings, stage: str) -> int:
    """Samples a weight update of that training stage."""
    training, hardware = training_of(settings, stage), settings.hardware
    return (
        training and training.global_batch_size
    ) or hardware.batch_size * hardware.accumulate_grad_batches * processes_of(hardware)


def steps_of(update: int, hardware: HardwareSettings) -> tuple[int, int]:
    """(samples a step and a device, steps a weight update): the fewest equal steps that hardware.batch_size allows."""
    processes = processes_of(hardware)
    steps = -(-update // (hardware.batch_size * processes))
    return update // steps // processes, steps


def processes_of(hardware: HardwareSettings) -> int:
    """How many processes train together, each on one device."""
    return hardware.devices * hardware.nodes


SPARSITY_SCHEMAS: dict[str, type[SparsitySettings]] = {
    "dense": DenseSettings,
    "random": RandomSettings,
    "forward_topk": ForwardTopkSettings,
    "tome": TomeSettings,
    "backtracking": BacktrackingSettings,
    "concrete": ConcreteSettings,
    "ltp": LtpSettings,
}


@dataclass
class BenchSettings:
    """What the speed benchmark measures."""

    image_sizes: list[int] = field(default_factory=list)  # sides in pixels
    batches: list[int] = field(default_factory=list)  # images a forward; empty: chosen by the device
    keeps: list[float] = field(default_factory=list)  # mean occupancy over samples and layer boundaries
    spread: float = 0.25  # standard deviation of the logarithm of a sample's counts; 0 leaves such plans out
    factors: list[int] = field(default_factory=list)  # of approximate networks; the first is trained, the last compiled
    merged: list[int] = field(default_factory=list)  # ToMe's pairs a layer, scaled from 196 patches and 12 layers
    rounds: int = 0  # interleaved rounds; 0: chosen by the device and the time that a round takes
    compile: bool = False  # time torch.compile of the dense model and of fixed counts too; on a GPU it always is
    train: bool = True  # time steps of training too
    train_batch: int = 8
    out: str = ""  # folder of the results


@dataclass
class SpeedSettings:
    """The root node of the speed benchmark. Weights are random, `model.pretrained` or not."""

    model: ModelSettings = field(default_factory=ModelSettings)
    hardware: HardwareSettings = field(default_factory=HardwareSettings)
    bench: BenchSettings = field(default_factory=BenchSettings)
