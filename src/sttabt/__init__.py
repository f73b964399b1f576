"""Token pruning with attention back-tracking (STTABT, ICLR 2023): tokens that are really gone."""

__version__ = "0.1.0"
