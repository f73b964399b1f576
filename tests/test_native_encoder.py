"""A whole encoder in one call: as torch's own operations compute it, and never past a change or somebody's hooks."""

import copy
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from conftest import VISION, make_approx, make_backbone, make_bert, make_distilbert, make_inputs
from sttabt import native
from sttabt.backbones.base import Backbone
from sttabt.core.plan import TokenPlan
from sttabt.core.text import Text
from sttabt.engine.attention import attend
from sttabt.engine.dense import run_dense, trace_attention
from sttabt.engine.dropped import run_dropped
from sttabt.models.approximate import ApproximateNetwork
from sttabt.native import product
from sttabt.pretrained.timm_model import build_timm

pytestmark = pytest.mark.skipif(
    not native.loaded() and shutil.which("c++") is None, reason="built without a C++ compiler: there are no kernels"
)
KNOWN = [name for name in VISION if name != "layer_scale_registers"] + ["bert", "distilbert"]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def rows_for(base: Backbone, count: int = 7) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(count, base.architecture.width)


def random_plan(base: Backbone, real: Tensor) -> TokenPlan:
    """Nested; every sample keeps another number of tokens, some layers keep all."""
    torch.manual_seed(1)
    depth = torch.randint(-1, base.layers, real.shape)
    depth[:, : base.outputs] = base.layers
    boundary = torch.arange(base.layers + 1)[None, :, None]
    return TokenPlan.of_sets((depth[:, None] >= boundary) & real[:, None])


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("lanes", [8, 16])
def test_dropping_is_what_torch_computes(name: str, lanes: int) -> None:
    base, inputs = make_backbone(name), make_inputs(name)
    inputs = base.prepare(inputs)
    plan = random_plan(base, base.real(inputs))
    with native.limited_to(lanes) as used:
        if used < 8:
            pytest.skip("a machine of narrow vectors leaves products to torch's library")
        assert base.native_encoder(rows_for(base)) is not None
        found = run_dropped(base, inputs, plan)
    with native.switched_off():
        expected = run_dropped(base, inputs, plan)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def traced_networks() -> dict[str, tuple[Backbone, Tensor | Text]]:
    networks = {}
    for name in ("test_vit", "no_bias", "lvvit"):
        base = make_backbone(name)
        networks[name] = make_approx(base, name).backbone, base.prepare(make_inputs(name))
    texts = {
        "bert": make_bert(hidden_size=128, intermediate_size=192),
        "distilbert": make_distilbert(dim=128, hidden_dim=192),
    }
    for name, base in texts.items():
        networks[name] = ApproximateNetwork(base.eval(), 2).eval().backbone, make_inputs(name)
    return networks


@pytest.mark.parametrize("name", ["test_vit", "no_bias", "lvvit", "bert", "distilbert"])
def test_traces_are_what_torch_computes(name: str) -> None:
    network, inputs = traced_networks()[name]
    assert network.native_encoder(rows_for(network)) is not None
    found = trace_attention(network, inputs)
    with native.switched_off():
        expected = trace_attention(network, inputs)
    assert len(found.queries) == network.layers
    torch.testing.assert_close(found.queries, expected.queries, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.keys, expected.keys, rtol=1e-4, atol=1e-4)


def test_more_rows_than_a_feed_forward_takes_at_a_time() -> None:
    base = make_backbone("test_vit")
    counts = [[700, 300]] * (base.layers - 2) + [[600, 300], [600, 41], [1, 1]]
    x = rows_for(base, sum(counts[0]))
    encoder = base.native_encoder(x)
    assert encoder is not None
    found = encoder.encode(x, base.heads, counts)
    for sample, rows in enumerate(x.split(list(counts[0]))):
        for layer in range(base.layers):
            kept = counts[layer + 1][sample]
            with native.switched_off():
                query, key, value = base.qkv(layer, rows[None], lambda read, kept=kept: read[:, :kept])
                rows = base.finish(layer, rows[None, :kept], attend(query, key, value, base.heads))[0]
        torch.testing.assert_close(found[sample : sample + 1], rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("counts", [[[5], [6], [1], [1]], [[7], [7], [-1], [1]], [[6], [6], [6], [6]]])
def test_counts_that_do_not_fall_are_refused(counts: list[list[int]]) -> None:
    base = make_backbone("test_vit")
    x = rows_for(base, 5)
    encoder = base.native_encoder(x)
    assert encoder is not None
    with pytest.raises(ValueError, match="do not fall"):
        encoder.encode(x, base.heads, counts)


def test_norms_alone_can_be_trained() -> None:
    base, images = make_backbone("test_vit").requires_grad_(False), make_inputs("test_vit")
    norms = [module for module in base.modules() if isinstance(module, nn.LayerNorm)]
    for norm in norms:
        norm.requires_grad_(True)
    with torch.enable_grad():
        run_dense(base, images).logits.sum().backward()
    assert all(norm.weight.grad is not None and norm.weight.grad.abs().sum() > 0 for norm in norms)


def change_a_weight(base: Backbone) -> None:
    base.model.blocks[1].mlp.fc1.weight.mul_(1.5)


def change_a_bias(base: Backbone) -> None:
    base.model.blocks[1].attn.qkv.bias.add_(1)


def change_a_norm(base: Backbone) -> None:
    base.model.blocks[0].norm1.weight.mul_(2)


def change_what_is_behind(base: Backbone) -> None:
    for parameter in base.parameters():
        parameter.data *= 1.1


def put_in_another_layer(base: Backbone) -> None:
    width = base.architecture.width
    base.model.blocks[0].attn.proj = nn.Linear(width, width)


def put_in_another_weight(base: Backbone) -> None:
    layer = base.model.blocks[0].attn.proj
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def load_other_weights(base: Backbone) -> None:
    base.load_state_dict({name: value * 0.9 for name, value in base.state_dict().items()})


def change_an_epsilon(base: Backbone) -> None:
    base.model.blocks[0].norm1.eps = 0.5


CHANGES = [change_an_epsilon,
           change_a_weight, change_a_bias, change_a_norm, change_what_is_behind, put_in_another_layer,
           put_in_another_weight, load_other_weights]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: Callable[[Backbone], None]) -> None:
    base, images = make_backbone("test_vit"), make_inputs("test_vit")
    plan = random_plan(base, base.real(images))
    before = run_dropped(base, images, plan)
    change(base)
    found = run_dropped(base, images, plan)
    assert base.native_encoder(rows_for(base)) is not None
    with native.switched_off():
        torch.testing.assert_close(found, run_dropped(base, images, plan), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, before)


def use_other_activation(base: Backbone) -> None:
    base.model.blocks[2].mlp.act = nn.GELU(approximate="tanh")


def use_parametrization(base: Backbone) -> None:
    nn.utils.parametrizations.weight_norm(base.model.blocks[0].mlp.fc2)


def use_parametrized_norm(base: Backbone) -> None:
    nn.utils.parametrize.register_parametrization(base.model.blocks[0].norm1, "weight", nn.Softplus())


def change_the_activation(base: Backbone) -> None:
    base.model.blocks[0].mlp.act.approximate = "tanh"


def use_a_wider_layer(base: Backbone) -> None:
    mlp, width = base.model.blocks[1].mlp, base.architecture.width
    mlp.fc1, mlp.fc2 = nn.Linear(width, 512), nn.Linear(512, width)


def drop_out(base: Backbone) -> None:
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.train()


def use_other_forward(base: Backbone) -> None:
    base.model.blocks[0].norm1.forward = lambda rows: rows


def use_double(base: Backbone) -> None:
    base.double()


def watch(base: Backbone) -> None:
    base.model.blocks[0].mlp.fc1.register_forward_hook(lambda *_: None)


def train(base: Backbone) -> None:
    base.train()


@pytest.mark.parametrize(
    "change",
    [
        use_other_activation,
        use_parametrization,
        use_parametrized_norm,
        change_the_activation,
        use_a_wider_layer,
        drop_out,
        use_other_forward,
        use_double,
        watch,
        train,
    ],
)
def test_what_the_kernels_do_not_know_is_left_to_torch(change: Callable[[Backbone], None]) -> None:
    base = make_backbone("test_vit")
    assert base.native_encoder(rows_for(base)) is not None
    change(base)
    assert base.native_encoder(rows_for(base).to(next(base.parameters()).dtype)) is None


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_texts_in_training_are_left_to_torch(name: str) -> None:
    base = make_backbone(name)
    assert base.native_encoder(rows_for(base)) is not None
    base.train()
    assert base.native_encoder(rows_for(base)) is None


def test_hooks_are_called() -> None:
    base, images = make_backbone("test_vit"), make_inputs("test_vit")
    plan, seen = random_plan(base, base.real(images)), []
    run_dropped(base, images, plan)
    base.model.blocks[0].mlp.fc1.register_forward_hook(lambda *_: seen.append(True))
    run_dropped(base, images, plan)
    assert seen == [True]


def test_gradients_are_left_to_torch() -> None:
    base = make_backbone("test_vit")
    assert base.native_encoder(rows_for(base)) is not None
    with torch.enable_grad():
        assert base.native_encoder(rows_for(base)) is None
        assert base.requires_grad_(False).native_encoder(rows_for(base)) is not None
        assert base.native_encoder(rows_for(base).requires_grad_()) is None


def test_a_layer_scale_is_not_left_out() -> None:
    base = make_backbone("layer_scale_registers")
    assert base.native_encoder(rows_for(base)) is None


def test_copies_pack_for_themselves() -> None:
    base, images = make_backbone("test_vit"), make_inputs("test_vit")
    plan = random_plan(base, base.real(images))
    before, packed = run_dropped(base, images, plan), len(product._packings)
    other = copy.deepcopy(base)
    other.model.blocks[0].mlp.fc1.weight.zero_()
    assert not torch.allclose(run_dropped(other, images, plan), before)
    assert torch.equal(run_dropped(base, images, plan), before)
    assert len(product._packings) > packed
    assert set(base.state_dict()) == set(other.state_dict())


def test_other_widths() -> None:
    """Widths of real models: what the tests' small ones do not reach (several panels, ends of panels)."""
    torch.manual_seed(2)
    base = build_timm("deit_small_patch16_224", {"depth": 2, "embed_dim": 288, "num_heads": 6}, 7, 3, 64).eval()
    images = torch.randn(3, 3, 64, 64)
    plan = random_plan(base, base.real(images))
    found = run_dropped(base, images, plan)
    with native.switched_off():
        torch.testing.assert_close(found, run_dropped(base, images, plan), rtol=1e-4, atol=1e-4)
