"""For tests of methods and backbones, those of other packages too: small models, and what must hold of all of them."""
