"""Other kernels: which are at hand, and how one runs a command on this machine's own files, in a virtual machine."""
