"""Which weights decay: matrices and kernels, not norms, biases, position embeddings and special tokens, as in timm."""

from __future__ import annotations

from torch import nn

# Parameters of more than one dimension by a part of their name, where the module itself does not list them.
UNDECAYED = {
    "pos_embed",
    "position_embeddings",
    "relative_position_bias_table",
    "cls_token",
    "dist_token",
    "distillation_token",
    "reg_token",
    "mask_token",
}


def undecayed(module: nn.Module) -> set[str]:
    """Full names of the parameters of `module` that get no weight decay.

    Those of one dimension or none (norms, biases, layer scale), those that UNDECAYED names, and those that any part of
    `module` names itself in timm's way, by a method `no_weight_decay()`.
    """
    parameters = dict(module.named_parameters())
    found = {name for name, value in parameters.items() if value.ndim <= 1 or UNDECAYED & set(name.split("."))}
    for prefix, part in module.named_modules():
        listed = getattr(part, "no_weight_decay", None)
        if callable(listed):
            found |= {f"{prefix}.{name}" if prefix else name for name in listed()}
    return found & parameters.keys()
