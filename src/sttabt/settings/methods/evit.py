"""EViT."""

from __future__ import annotations

from dataclasses import dataclass

from sttabt.settings.methods.class_attention import ClassAttentionSettings


@dataclass
class EvitSettings(ClassAttentionSettings):
    """EViT: the tokens that the class token attends to most go on, and the others become one."""

    title = "EViT"
    source = "Liang et al., ICLR 2022, section 3.2"
    implementation = "sttabt.methods.evit:Evit"
    colour = "#DD00BB"
    order = 8
