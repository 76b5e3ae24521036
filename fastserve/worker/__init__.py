"""Where steps run: in this process, or in the ranks of a device group."""
