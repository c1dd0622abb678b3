"""TFTP: codec, sessions and file look-up, without a socket."""
