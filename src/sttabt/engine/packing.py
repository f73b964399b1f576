"""From a backbone's layers to one packed buffer, and what stands in the way of that, by name.

The kernels compute a transformer layer with linear layers, layer norms and a GELU (by erf, by tanh, or QuickGELU) in
single precision on a CPU. Whatever is more than that is named: hooks, subclasses (LoRA, quantized layers),
parametrizations, dropout at work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sttabt.backbones.base import Backbone
from sttabt.backbones.layers import EncoderLayer
from sttabt.backbones.repeated import has_hooks
from sttabt.errors import UserError
from sttabt.native import LayerWeights, Linear, Norm, PackedEncoder, kernels_problem, pack_encoder

NORMS = ("LayerNorm", "LayerNormFp32")  # of torch and of timm
GELUS = {  # classes of timm and transformers, by which of native.packed.ACTIVATIONS they compute
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "QuickGELU": "quick_gelu",
    "QuickGELUActivation": "quick_gelu",
}
DROPOUTS = ("Dropout", "DropPath")
DROPPED = ("p", "drop_prob")  # what they call the share that they drop


def packing_problems(backbone: Backbone) -> list[str]:
    """What the kernels would not compute as the modules do, each with the module's name; [] where it can be packed."""
    if (useless := kernels_problem()) is not None:
        return [useless]
    try:
        backbone.check()
    except UserError as error:
        return [str(error)]
    layers = backbone.encoder_layers()
    if layers is None:
        return [f"{type(backbone).__name__} has layers that the kernels do not know"]
    names = {id(module): name for name, module in backbone.model.named_modules()}
    found = [problem for layer in layers for problem in _layer_problems(layer, names)]
    found += [
        f"{name} is training: call eval()"
        for name, module in backbone.model.named_modules()
        if module.training and (_drops(module) or isinstance(module, nn.modules.batchnorm._BatchNorm))
    ]
    found += [
        f"{name} is {tensor.dtype} on {tensor.device}, where float32 on cpu is needed"
        for name, tensor in backbone.model.named_parameters()
        if tensor.dtype != torch.float32 or not tensor.is_cpu
    ]
    return found or _shape_problems(layers, names)


def pack_layers(backbone: Backbone) -> PackedEncoder:
    """All layers, of a backbone without problems. Layer scales go into the projections before them."""
    layers = backbone.encoder_layers()
    assert layers, "without problems there are layers"
    activation = _activation_of(layers[0].activation)
    assert activation, "without problems it is a known one"
    return pack_encoder([_weights(layer) for layer in layers], backbone.heads, layers[0].norm_first, activation)


def _layer_problems(layer: EncoderLayer, names: dict[int, str]) -> Iterator[str]:
    def named(module: nn.Module) -> str:
        return names.get(id(module), type(module).__name__)

    linears = (*layer.inputs, layer.join, layer.widen, layer.narrow)
    kinds = (
        (linears, lambda module: type(module) is nn.Linear, "a plain nn.Linear"),
        ((layer.first, layer.second), _is_norm, "a layer norm over the width"),
        ((layer.activation,), _activation_of, "a GELU or QuickGELU"),
        (layer.scales, lambda module: isinstance(module, nn.Identity) or _is_layer_scale(module), "a layer scale"),
        (layer.dropouts, lambda module: isinstance(module, nn.Identity) or _drops_by_name(module), "a dropout"),
    )
    for modules, fits, wanted in kinds:
        for module in modules:
            if has_hooks(module):
                yield f"{named(module)} has a forward hook or a replaced forward"
            elif not fits(module):
                kind = f"{type(module).__name__}({module.extra_repr()})"
                yield f"{named(module)} is a {kind}, not {wanted}"
            elif unusual := [
                x for x in module._parameters.values() if type(x) not in (Tensor, nn.Parameter, type(None))
            ]:
                yield f"{named(module)} holds a {type(unusual[0]).__name__}, not a plain tensor"


def _shape_problems(layers: list[EncoderLayer], names: dict[int, str]) -> list[str]:
    width, wide = layers[0].join.weight.shape[0], layers[0].widen.weight.shape[0]
    found = []
    for layer in layers:
        wanted = [(module, (3 // len(layer.inputs) * width, width)) for module in layer.inputs]
        wanted += [(layer.join, (width, width)), (layer.widen, (wide, width)), (layer.narrow, (width, wide))]
        found += [
            f"{names.get(id(module), 'a layer')} has the shape {tuple(module.weight.shape)}, not {shape}"
            for module, shape in wanted
            if tuple(module.weight.shape) != shape
        ]
        if layer.norm_first != layers[0].norm_first:
            found.append(f"{names.get(id(layer.block), 'a block')} has its norms elsewhere than the first block")
        if _activation_of(layer.activation) != _activation_of(layers[0].activation):
            own = f"{type(layer.activation).__name__}({layer.activation.extra_repr()})"
            found.append(f"{names.get(id(layer.activation), 'an activation')} is a {own}, unlike the first block's")
    return found


def _weights(layer: EncoderLayer) -> LayerWeights:
    each = 3 // len(layer.inputs)
    query, key, value = (
        Linear(weight, bias)
        for module in layer.inputs
        for weight, bias in zip(module.weight.chunk(each), _chunks(module.bias, each), strict=True)
    )
    scales: tuple[nn.Module, ...] = layer.scales or (nn.Identity(), nn.Identity())
    join, narrow = (_scaled(module, scale) for module, scale in zip((layer.join, layer.narrow), scales, strict=True))
    widen = Linear(layer.widen.weight, layer.widen.bias)
    first, second = (Norm(norm.weight, norm.bias, norm.eps) for norm in (layer.first, layer.second))
    return LayerWeights(query, key, value, join, widen, narrow, first, second)


def _chunks(x: Tensor | None, count: int) -> tuple[Tensor | None, ...]:
    return (None,) * count if x is None else x.chunk(count)


def _scaled(module: Any, scale: nn.Module) -> Linear:
    """What a linear layer with a layer scale behind it is."""
    gamma = getattr(scale, "gamma", getattr(scale, "lambda1", None))
    if gamma is None:
        return Linear(module.weight, module.bias)
    return Linear(gamma[:, None] * module.weight, None if module.bias is None else gamma * module.bias)


def _is_norm(module: Any) -> bool:
    kind = type(module)
    return (
        isinstance(module, nn.LayerNorm)
        and kind.__name__ in NORMS
        and kind.__module__.startswith(("torch.", "timm."))
        and len(module.normalized_shape) == 1
    )


def _activation_of(module: nn.Module) -> str | None:
    """Which of native.packed.ACTIVATIONS it is, as torch, timm or transformers write it; None for another."""
    kind = type(module)
    if kind is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(str(module.approximate))
    if not kind.__module__.startswith(("timm.", "transformers.")):
        return None
    return "gelu" if getattr(module, "act", None) is F.gelu else GELUS.get(kind.__name__)


def _is_layer_scale(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__.endswith("LayerScale") and kind.__module__.startswith(("timm.", "transformers."))


def _drops_by_name(module: nn.Module) -> bool:
    return type(module).__name__.endswith(DROPOUTS)


def _drops(module: nn.Module) -> bool:
    return _drops_by_name(module) and any(getattr(module, name, 0) for name in DROPPED)
