"""Files for other runtimes: each computes what torch computes, with fewer tokens, or is not there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import sttabt
from conftest import make_backbone, make_inputs
from images import make_idx
from sttabt.cli.composition import compose_settings
from sttabt.core.trace import AttentionTrace
from sttabt.errors import UserError
from sttabt.export import main
from sttabt.models.cascade import pick
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.stages import run_stages
from sttabt.runtimes import executorch_file
from sttabt.runtimes.exporting import export
from sttabt.runtimes.formats import RUNTIMES
from sttabt.runtimes.graph import Graph
from sttabt.runtimes.reading import open_exported
from sttabt.runtimes.runtime import Runtime
from sttabt.store.job import Job
from sttabt.testing.models import make_example, make_pruned

INSTALLED = [name for name, each in RUNTIMES.items() if all(map(find_spec, each.packages.values()))]
needs_onnx = pytest.mark.skipif("onnx" not in INSTALLED, reason="the extra sttabt[export] is not installed")
TOKENS = 16  # that texts are padded to
GRAPHS = [  # a graph takes seconds to make
    *(("digits", method) for method in ("dense", "backtracking", "concrete")),
    *(("bert", method) for method in ("dense", "backtracking", "concrete")),
    *(("lvvit", "concrete"), ("distilled", "backtracking"), ("distilbert", "backtracking")),
    *(("mean_of_patches", "concrete"), ("attention_pool", "backtracking"), ("dinov2_registers", "backtracking")),
    *(("bert_mean", method) for method in ("dense", "backtracking", "concrete")),
    *(("roberta", "dense"), ("roberta", "backtracking"), ("siglip_embedding", "backtracking")),
]


def _pruned(name: str, method: str = "backtracking", **settings: Any) -> tuple[PrunedModel, list[int] | None]:
    """A model, and counts that fit it; None where it is dense."""
    pruned = make_pruned(make_example(name), method, **settings)
    if method == "dense":
        return pruned, None
    tokens = TOKENS if pruned.base.may_pad else pruned.base.tokens
    falling = np.linspace(0.8 * tokens, pruned.base.outputs + 1, pruned.base.layers)
    return pruned, falling.round().astype(int).tolist()


def _tokens(pruned: PrunedModel) -> int | None:
    return TOKENS if pruned.base.may_pad else None


def _ending(format: str) -> str:
    return f"model{RUNTIMES[format].suffix}"


@pytest.mark.parametrize("name, method", GRAPHS)
@torch.no_grad()
def test_a_graph_computes_what_the_model_computes(name: str, method: str) -> None:
    """Texts of several lengths in one batch: each alone, without padding, has the same logits."""
    pruned, counts = _pruned(name, method)
    graph = Graph(pruned, counts, _tokens(pruned))
    given = graph.examples(5)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(graph, given, dynamic_shapes=(tuple({0: batch} for _ in given),)).module()
    for size in (1, 2, 7):
        others = graph.examples(size)
        torch.testing.assert_close(program(*others), graph.expected(others), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_graph_resamples_no_position_embedding() -> None:
    """timm does while it exports, also where the image has the model's own size; ExecuTorch has no such operator."""
    pruned = sttabt.prune(timm.create_model("test_vit", dynamic_img_size=True), "dense")
    graph = Graph(pruned)
    program = torch.export.export(graph, graph.examples(1))
    names = [str(node.target) for node in program.graph.nodes]
    assert any("softmax" in name or "attention" in name for name in names)
    assert not [name for name in names if "upsample" in name]


@pytest.mark.parametrize("format", INSTALLED)
@pytest.mark.parametrize("name", ["digits", "bert"])
def test_a_file_has_the_models_logits_and_says_how_to_use_it(name: str, format: str, tmp_path: Path) -> None:
    pruned, counts = _pruned(name)
    made = export(pruned, tmp_path / _ending(format), format=format, counts=counts, tokens=_tokens(pruned))
    assert made.counts == [*counts, 1] and made.difference < 1e-4 and made.agreement is None
    found = open_exported(made.path)
    assert found.metadata["counts"] == made.counts and found.metadata["method"] == "back-tracking top-k"
    assert found.metadata["classes"] == ([f"LABEL_{n}" for n in range(5)] if name == "bert" else list("01234"))
    graph = Graph(pruned, counts, _tokens(pruned))
    given = graph.tensors(make_inputs(name))
    torch.testing.assert_close(found(*given), graph.expected(given), atol=1e-4, rtol=1e-4)
    wanted = ["input_ids", "attention_mask", "token_type_ids"] if name == "bert" else ["images"]
    assert [each.name for each in found.inputs] == wanted


@pytest.mark.parametrize("format", INSTALLED)
@pytest.mark.parametrize("name", ["bert_mean", "siglip_embedding"])
def test_a_file_of_an_encoder_has_its_vectors_and_says_so(name: str, format: str, tmp_path: Path) -> None:
    """Texts of unequal length, of which some have fewer tokens than a layer's count: padding is in no mean."""
    pruned, counts = _pruned(name)
    made = export(pruned, tmp_path / _ending(format), format=format, counts=counts, tokens=_tokens(pruned))
    found = open_exported(made.path)
    assert made.output == found.metadata["output"] == "embeddings" and found.metadata["classes"] == []
    graph = Graph(pruned, counts, _tokens(pruned))
    inputs = make_inputs(name)
    assert name != "bert_mean" or int(inputs.real.sum(-1).min()) < counts[0]
    for batch in (inputs, pick(inputs, [0]), pick(inputs, [0, 1])):
        given = graph.tensors(batch)
        torch.testing.assert_close(found(*given), graph.expected(given), atol=1e-4, rtol=1e-4)


@needs_onnx
def test_a_dense_encoders_file_is_the_librarys_and_int8_says_how_alike_it_is(tmp_path: Path) -> None:
    import onnx

    model, text = make_backbone("bert_mean").model, make_inputs("bert_mean")
    plain = export(model, tmp_path / "plain.onnx", tokens=text.ids.shape[1])
    given = (text.ids, text.real.long(), text.types)
    with torch.no_grad():
        states = model(text.ids, attention_mask=text.real, token_type_ids=text.types).last_hidden_state
    expected = torch.stack([own[real].mean(0) for own, real in zip(states, text.real, strict=True)])
    found = open_exported(plain.path)
    torch.testing.assert_close(found(*given), expected, atol=1e-4, rtol=1e-4)
    assert [each.name for each in onnx.load(plain.path).graph.output] == ["embeddings"]
    made = export(model, tmp_path / "int8.onnx", tokens=text.ids.shape[1], int8=True, calibration=[text])
    small = open_exported(made.path)
    alike = torch.nn.functional.cosine_similarity(small(*given), expected).double().mean()
    assert 0.9 < made.agreement < 0.99999 and made.agreement == pytest.approx(float(alike), abs=1e-6)
    assert small.metadata["agreement"] == made.agreement


@needs_onnx
@pytest.mark.parametrize("name, method", [("lvvit", "concrete"), ("distilbert", "concrete"), ("bert", "dense")])
def test_onnx_takes_the_other_models_and_methods(name: str, method: str, tmp_path: Path) -> None:
    pruned, counts = _pruned(name, method)
    made = export(pruned, tmp_path / "model.onnx", counts=counts, tokens=_tokens(pruned))
    assert made.difference < 1e-3


@needs_onnx
def test_an_onnx_graph_has_fewer_rows_and_no_sort(tmp_path: Path) -> None:
    """A product's rows, by shape inference: no layer computes more than its count."""
    import onnx

    pruned, _ = _pruned("digits")
    made = export(pruned, tmp_path / "model.onnx", counts=[20, 9, 4])
    graph = onnx.shape_inference.infer_shapes(onnx.load(made.path), data_prop=True).graph
    assert not {node.op_type for node in graph.node} & {"Sort", "NonZero", "If", "Loop", "Unique"}
    shapes = {each.name: [d.dim_value for d in each.type.tensor_type.shape.dim] for each in graph.value_info}
    weights = {each.name: tuple(each.dims) for each in graph.initializer}
    width = pruned.base.architecture.width
    wide = [n for n in graph.node if n.op_type == "MatMul" and weights.get(n.input[1]) == (width, 4 * width)]
    assert [shapes[node.output[0]][1] for node in wide] == [9, 4, 1], "the feed-forward of each layer's written rows"
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the batch is dynamic"


@needs_onnx
def test_int8_says_on_how_many_inputs_it_agrees(tmp_path: Path) -> None:
    pruned, counts = _pruned("digits")
    images = torch.randn(40, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    plain = export(pruned, tmp_path / "plain.onnx", counts=counts)
    made = export(pruned, tmp_path / "int8.onnx", counts=counts, int8=True, calibration=[images[:30], images[30:]])
    found = open_exported(made.path)
    same = found(images).argmax(-1) == Graph(pruned, counts).expected((images,)).argmax(-1)
    assert made.agreement == found.metadata["agreement"] == float(same.double().mean()) and found.metadata["int8"]
    assert made.path.stat().st_size < plain.path.stat().st_size
    made.path.unlink(), plain.path.unlink()
    _refused("give calibration=", pruned, tmp_path, "model.onnx", format="onnx", counts=counts, int8=True)


@needs_onnx
@pytest.mark.skipif("openvino" not in INSTALLED, reason="OpenVINO is not installed")
def test_who_stands_for_stderr_meanwhile_keeps_the_stream(tmp_path: Path) -> None:
    """Logging that is configured anew, as Hydra does it, closes the handlers that there are, OpenVINO's among them."""
    code = """
import io, logging.config, sys
sys.stderr = caught = io.StringIO()
from sttabt.runtimes.openvino_file import OpenVinoFile
try:
    OpenVinoFile().open(sys.argv[1], 1)
except Exception:
    pass
assert "absl.logging" in sys.modules
sys.stderr = sys.__stderr__
logging.config.dictConfig({"version": 1})
assert not caught.closed
"""
    (tmp_path / "model.xml").write_text("none")
    subprocess.run([sys.executable, "-c", code, tmp_path / "model.xml"], check=True)


@pytest.mark.usefixtures("own_folder")
def test_the_readmes_lines_run() -> None:
    section = (Path(__file__).parents[1] / "README.md").read_text().partition("## Onto a device")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    subprocess.run([sys.executable, "-c", code], check=True)


def test_counts_are_the_mean_of_what_the_method_keeps(tmp_path: Path) -> None:
    pruned, _ = _pruned("digits", "concrete", p_logit=-1.0)
    images = make_inputs("digits")
    mean = pruned.plan(images).counts[:, :-1].double().mean(0).round().long().tolist()
    labels = torch.zeros(2)
    made = export(
        pruned, tmp_path / "model.pt2", format="torch", calibration=[(images[:2], labels), (images[2:], labels)]
    )
    assert made.counts == [*mean, 1]


def test_counts_of_texts_are_the_mean_share_of_what_the_file_pads_to(tmp_path: Path) -> None:
    pruned, text = _pruned("bert")[0], make_inputs("bert")
    kept = pruned.plan(text).counts[:, :-1].double().sum(0) / text.real.sum()
    for tokens in (TOKENS, 5):  # longer than the texts, and shorter
        made = export(pruned, tmp_path / "model.pt2", format="torch", calibration=[text], tokens=tokens)
        assert made.counts == [*(kept * tokens).round().long().tolist(), 1]


def test_a_budget_of_texts_that_cannot_be_met_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pruned, text = _pruned("bert")[0], make_inputs("bert")
    given: dict[str, Any] = {"format": "torch", "calibration": [text], "tokens": TOKENS}
    caplog.set_level("INFO")
    made = export(pruned, tmp_path / "model.pt2", budget=0.02, **given)
    said = [record.getMessage() for record in caplog.records if "budget" in record.getMessage()]
    (line,) = said
    assert line.startswith(
        f"budget=0.02 cannot be met by a graph of {TOKENS} tokens: {made.macs_share:.4g} is the nearest"
    )
    assert pruned.method.settings.keep_ratio == 0.5, "the model stays as it was"


def test_a_budget_that_would_move_nothing_is_refused(tmp_path: Path) -> None:
    for name, settings in (("digits", {"dynamic": True}), ("bert", {"counts": [9, 5, 3]})):
        pruned = _pruned(name, **settings)[0]
        with pytest.raises(UserError, match=r"moves sparsity\.keep_ratio, which has no effect here"):
            export(pruned, tmp_path / "a.pt2", format="torch", budget=0.5, calibration=[make_inputs(name)])


@pytest.mark.parametrize("name, method", [("digits", "backtracking"), ("digits", "concrete"), ("bert", "backtracking")])
def test_a_budget_is_kept_by_the_file_and_leaves_the_model_as_it_was(name: str, method: str, tmp_path: Path) -> None:
    pruned, _ = _pruned(name, method)
    before, inputs = pruned.method.settings, make_inputs(name)
    made = export(
        pruned, tmp_path / "model.pt2", format="torch", budget=0.8, calibration=[inputs], tokens=_tokens(pruned)
    )
    assert open_exported(made.path).metadata["macs_share"] == made.macs_share
    assert made.macs_share == pytest.approx(0.8, abs=0.05)  # of whole tokens; texts are padded to more than they have
    if name == "digits":
        settings = replace(pruned.method.settings, **_as_counts(pruned, made.counts[:-1]))
        fixed = PrunedModel(pruned.base, type(pruned.method)(settings, pruned.base.layers, 1), pruned.approx).eval()
        if method == "backtracking":  # whose rows are counted as they run
            run = fixed.run(inputs)
            counted = sum(fixed.macs(run).values()) / sum(fixed.dense_macs(run.real).values())
            assert made.macs_share == pytest.approx(counted, rel=1e-6)
    assert pruned.method.settings == before


def _as_counts(pruned: PrunedModel, counts: list[int]) -> dict[str, Any]:
    return {"counts": counts} if hasattr(pruned.method.settings, "counts") else {}


def test_a_librarys_model_is_exported_dense_and_torch_alone_runs_it(tmp_path: Path) -> None:
    model, images = make_backbone("digits").model, make_inputs("digits")
    path = sttabt.export(model, tmp_path / "model.pt2", format="torch", class_names=list("abcde")).path
    extra = {"sttabt": ""}
    program = torch.export.load(path, extra_files=extra).module()
    with torch.no_grad():
        torch.testing.assert_close(program(images), model(images), atol=1e-5, rtol=1e-5)
    assert json.loads(extra["sttabt"])["classes"] == list("abcde")


def _refused(pattern: str, model: Any, tmp_path: Path, name: str = "model.pt2", **options: Any) -> None:
    options = {"format": "torch", **options}
    with pytest.raises(UserError, match=pattern) as caught:
        export(model, tmp_path / name, **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line_and_leave_no_file(tmp_path: Path) -> None:
    pruned, counts = _pruned("digits")
    _refused("format=tflite is unknown", pruned, tmp_path, format="tflite")
    _refused(r"ends in \.pt2; format=onnx writes \.onnx", pruned, tmp_path, "model.onnx")
    _refused(r"ends in \.pt2$", pruned, tmp_path, "model.tflite")
    _refused(r"counts=\[60, 7, 5\] do not fit the model.*at most 50", pruned, tmp_path, counts=[60, 7, 5])
    _refused(r"counts=\[9, 7\] has 2 entries: give one for each of 3 layers$", pruned, tmp_path, counts=[9, 7])
    _refused("3 layers, without the tokens behind the last", pruned, tmp_path, counts=[9, 7, 5, 1])
    _refused(r"must fall", pruned, tmp_path, counts=[7, 9, 5])
    _refused(r"give counts=.* or calibration=", pruned, tmp_path)
    _refused("tokens=9 has no effect on images", pruned, tmp_path, counts=counts, tokens=9)
    _refused("int8=true goes with format=onnx", pruned, tmp_path, int8=True)
    _refused("opset=18 has no effect", pruned, tmp_path, opset=18)
    _refused("Linear cannot be pruned", torch.nn.Linear(2, 2), tmp_path)
    _refused("frozen model", sttabt.freeze(pruned), tmp_path)
    _refused("training mode.*eval", make_pruned(make_example("digits"), "dense").train(), tmp_path)
    _refused("float64.*float", make_pruned(make_example("digits"), "dense").double(), tmp_path)
    _refused("keeps every token", make_pruned(make_example("digits"), "dense"), tmp_path, counts=counts)
    _refused(r"budget=0.5 is found on inputs: give calibration", pruned, tmp_path, budget=0.5)
    _refused("say the same", pruned, tmp_path, budget=0.5, counts=counts, calibration=[make_inputs("digits")])
    timed = sttabt.Budget(time=0.5)
    _refused("a file's device alone can tell", pruned, tmp_path, budget=timed, calibration=[make_inputs("digits")])
    few = sttabt.Budget(macs=0.5, samples=1)
    _refused(
        "budget.samples=1 has no effect beside cal", pruned, tmp_path, budget=few, calibration=[make_inputs("digits")]
    )
    _refused("calibration is a Tensor: give a DataLoader", pruned, tmp_path, calibration=make_inputs("digits"))
    _refused("budget=50 is no share", pruned, tmp_path, budget=50, calibration=[make_inputs("digits")])
    _refused("budget=0.5 has no effect on a dense", make_pruned(make_example("digits"), "dense"), tmp_path, budget=0.5)
    encoder, counts = _pruned("bert_mean")
    _refused("class_names have no effect on a model without", encoder, tmp_path, counts=counts, class_names=["a"])
    text, counts = _pruned("bert")
    _refused("tokens=99 is out of range: texts have 2 to 24", text, tmp_path, counts=counts, tokens=99)
    _refused("begin with more tokens than tokens=4", text, tmp_path, counts=counts, tokens=4)


@pytest.mark.parametrize("method", ["ltp", "tome", "forward_topk", "evit", "random"])
def test_a_method_without_such_a_graph_is_refused_with_what_would_serve(method: str, tmp_path: Path) -> None:
    pruned = make_pruned(make_example("digits"), method)
    _refused(f"{pruned.method.title} .*dense, backtracking and concrete", pruned, tmp_path)


@needs_onnx
@pytest.mark.parametrize(
    "opset, line",
    [
        (13, "opset=13 is too old: the graph needs 18"),
        (99, "opset=99 is newer"),
        ("18", "opset='18' is no whole number: choose 18 to"),
    ],
)
def test_an_opset_that_cannot_be_written_is_refused(opset: Any, line: str, tmp_path: Path) -> None:
    pruned, counts = _pruned("digits")
    _refused(line, pruned, tmp_path, "model.onnx", format="onnx", counts=counts, opset=opset)


@pytest.mark.parametrize("format", [name for name, each in RUNTIMES.items() if each.packages])
def test_a_missing_package_is_one_line_that_says_how_to_install(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned, counts = _pruned("digits")
    hidden = set(RUNTIMES[format].packages.values())
    for name in [each for each in sys.modules if each.partition(".")[0] in hidden]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sttabt.runtimes.runtime.find_spec", lambda name: None if name in hidden else find_spec(name))
    line = (
        "pip install executorch torchao$" if format == "executorch" else r"pip install onnx .*, or 'sttabt\[export\]'"
    )
    _refused(line, pruned, tmp_path, _ending(format), format=format, counts=counts)


def test_inputs_that_hang_on_rounding_are_left_out_of_the_comparison() -> None:
    """Of two tokens whose importance is the same but for 1e-7 either may stay; where all are such, some are taken."""
    graph = Graph(*_pruned("digits"))
    own = graph.examples(2)[0]
    _, other, *_ = graph._drawn(torch.Generator().manual_seed(0), 11)[0]
    assert torch.equal(own[1], other), "this model's inputs are clear"

    class Edge:
        """Cuts as the model does, the second sample now so and now so."""

        turn = 0

        def __call__(self, trace: AttentionTrace, counts: list[int]) -> torch.Tensor:
            order = ordered(trace, counts).clone()
            if self.turn % 2:
                order[1] = order[1].flip(0).roll(1)  # the output token stays in front
            self.turn += 1
            return order

    ordered = graph.fixed.pruned.method.order  # type: ignore[union-attr]
    graph.fixed.pruned.method.order = Edge()  # type: ignore[union-attr, method-assign]
    found = graph.examples(2)[0]
    assert torch.equal(found[0], own[0]) and not torch.equal(found[1], own[1])


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model changes while its file is written."""
    pruned, counts = _pruned("digits")
    write = type(RUNTIMES["torch"]).write

    def late(self: Runtime, *arguments: Any) -> None:
        write(self, *arguments)
        pruned.base.model.head.bias.data.add_(1e-3)

    monkeypatch.setattr(type(RUNTIMES["torch"]), "write", late)
    _refused("does not compute what torch computes: at batch 1", pruned, tmp_path, counts=counts)


def test_a_file_of_texts_takes_an_encoding_by_keyword(tmp_path: Path) -> None:
    pruned, _ = _pruned("bert", "dense")
    found = open_exported(export(pruned, tmp_path / "model.pt2", format="torch", tokens=8).path)
    ids = torch.randint(3, 20, (2, 8))
    encoding = {"token_type_ids": torch.zeros_like(ids), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = found(ids, encoding["attention_mask"], encoding["token_type_ids"])
    assert torch.equal(found(**encoding), expected)
    names = "takes input_ids, attention_mask, token_type_ids"
    with pytest.raises(UserError, match=f"{names}: input_ids were given"):
        found(input_ids=ids)
    with pytest.raises(UserError, match=f"{names}: input_ids and 1 without a name were given"):
        found(ids, input_ids=ids)


def test_where_no_file_can_be_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned, _ = _pruned("digits")
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken is a file where a folder is wanted"):
        export(pruned, tmp_path / "taken" / "below" / "m.pt2", format="torch", counts=[1, 2])
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(UserError, match=f"{tmp_path} takes no files: change its permissions"):
        export(pruned, tmp_path / "new" / "m.pt2", format="torch", counts=[1, 2])
    assert not (tmp_path / "new").exists()


def test_a_budget_may_be_written_as_for_prune(tmp_path: Path) -> None:
    pruned, _ = _pruned("digits")
    counts = [
        export(pruned, tmp_path / "m.pt2", format="torch", budget=budget, calibration=[make_inputs("digits")]).counts
        for budget in (0.6, sttabt.Budget(macs=0.6))
    ]
    assert counts[0] == counts[1]


def test_inputs_of_another_size_are_one_line(tmp_path: Path) -> None:
    pruned, _ = _pruned("digits", "dense")
    found = open_exported(export(pruned, tmp_path / "model.pt2", format="torch").path)
    for given, line in (
        (torch.randn(2, 1, 32, 32), r"images has the shape \(2, 1, 32, 32\).*\(B, 1, 28, 28\)"),
        (torch.randn(1, 28, 28), "has the shape"),
        (torch.randn(2, 1, 28, 28).double(), "images is float64, but .* reads float32"),
    ):
        with pytest.raises(UserError, match=line) as caught:
            found(given)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="takes images: 2 arrays were given"):
        found(given, given)


@pytest.mark.parametrize("format", INSTALLED)
def test_a_file_that_is_no_export_is_one_line(format: str, tmp_path: Path) -> None:
    path = tmp_path / _ending(format)
    with pytest.raises(UserError, match="is not there"):
        open_exported(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot be read") as caught:
        open_exported(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is no exported file"):
        open_exported(tmp_path / "model.gguf")


@pytest.mark.usefixtures("own_folder")
def test_the_command_exports_what_a_run_saved(artifacts: dict[str, Path], capsys: pytest.CaptureFixture) -> None:
    assert main([f"model={artifacts['prune']}", "format=torch", "calibration=40"]) == 0
    (file,) = Path().glob("prune-*.pt2")
    found = open_exported(file)
    said = re.match(
        r"(\S+): \[(.*)\] tokens, 0\.\d+ of the dense multiply-adds; logits within", capsys.readouterr().out
    )
    assert said and found.metadata["counts"] == list(map(int, said[2].split(",")))
    assert found.metadata["classes"] == list("0123456789") and found.metadata["method"] == "concrete"
    assert found.metadata["preprocessing"]["mean"] and found.metadata["preprocessing"]["height"] == 28
    assert main([f"model={artifacts['prune']}", "format=torch", "budget=0.9", "calibration=40", "out=part.pt2"]) == 0
    assert open_exported("part.pt2").metadata["macs_share"] < 1
    assert main([f"model={artifacts['base']}", "format=torch", "out=dense.pt2"]) == 0
    assert set(open_exported("dense.pt2").metadata["counts"]) == {sttabt.load(artifacts["base"]).base.tokens}


@pytest.mark.usefixtures("own_folder")
def test_the_command_says_where_data_are_that_were_moved(
    artifacts: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    given = [f"model={artifacts['prune']}", "format=torch", "data=there"]
    assert main(given) == 2
    assert "data=there has no effect: digits is read from no path of one's own" in capsys.readouterr().err
    assert main([*given, "counts=[17,9]"]) == 2
    assert "data=there has no effect: nothing is calibrated here" in capsys.readouterr().err
    make_idx(Path("files"))
    overrides = ["dataset=fashion_mnist", "dataset.path=files", "dataset.validation_share=0.5", "stages=[base,approx]"]
    settings = compose_settings(
        ["experiment=debug", "logger=none", "sparsity=backtracking", "hardware.batch_size=10", *overrides],
        output="output",
    )
    run_stages(settings, Job(command="test", sweep="sweep", multirun=False, commit="0123"))
    Path("files").rename("there")
    (folder,) = Path("artifacts/approx").glob("*/")
    moved = [f"model={folder}", "format=torch", "budget=0.9", "out=moved.pt2"]
    assert main(moved) == 2
    assert "; data=PATH says where they are now" in capsys.readouterr().err and not Path("moved.pt2").exists()
    assert main([*moved, "data=there"]) == 0 and Path("moved.pt2").exists()


@pytest.mark.usefixtures("own_folder")
def test_the_command_says_what_a_file_of_an_encoder_gives(capsys: pytest.CaptureFixture) -> None:
    _pruned("bert_mean")[0].save_pretrained("saved")
    assert main(["model=saved", "format=torch", "counts=[9,5,3]", "tokens=12", "out=vectors.pt2"]) == 0
    assert "; embeddings within" in capsys.readouterr().out
    assert open_exported("vectors.pt2").metadata["classes"] == []


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize(
    "arguments, line",
    [
        ([], "model is missing"),
        (["model=nowhere"], "nowhere is not there: give the folder of a model"),
        (["model=nowhere", "formt=onnx"], "did you mean 'format'?"),
        (["model=nowhere", "counts=[4,b]"], "counts=[4,b]: give whole numbers"),
        (["model=nowhere", "int8=yes"], "int8=yes is neither true nor false"),
        (["model=nowhere", "budget=half"], "budget=half is no share"),
        (["model=nowhere", "calibration=0"], "calibration=0 is no whole number above 0"),
        (["model=nowhere", "data="], "cannot read 'data=': give data=VALUE once"),
    ],
)
def test_a_mistake_at_the_command_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*arguments, *(["format=torch"] if arguments == ["model=nowhere"] else [])]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


@pytest.mark.parametrize("bias", [None, "bool", "float"])
def test_attention_of_executorch_is_torch_s(bias: str | None) -> None:
    """What its files compute, without its package."""
    query, key, value = torch.randn(3, 2, 3, 5, 8).unbind(0)
    mask = torch.tensor([True, False, True, True, False]).expand(2, 1, 1, 5)
    given = {None: None, "bool": mask, "float": torch.zeros(2, 1, 1, 5).masked_fill(~mask, -torch.inf)}[bias]
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, given)
    torch.testing.assert_close(executorch_file._attention(query, key, value, given), expected)


def test_gelu_of_executorch_is_torch_s() -> None:
    x = torch.linspace(-5, 5, 101)
    expected = torch.nn.functional.gelu(x, approximate="tanh")
    torch.testing.assert_close(executorch_file._gelu(x, approximate="tanh"), expected)
    assert executorch_file._gelu(x) is NotImplemented
