"""PNASNet-5: three scales of one network, and the weights that go with them."""
