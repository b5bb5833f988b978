"""Networks, data and recipes of the CIFAR-10 literature; the networks serve any small image."""
