"""HTTP: which name stands for which bytes, without a socket."""
