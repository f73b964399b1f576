"""The speed benchmark: what dropping tokens saves on this machine, beside what the arithmetic allows."""
