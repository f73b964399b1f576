"""Agreement with the official implementation, quantity by quantity: `python -m sttabt.parity DIR`."""
