"""Networks of the CIFAR-10 literature, for any small image."""
