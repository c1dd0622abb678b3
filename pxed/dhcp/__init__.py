"""DHCP: codec, classification and policy, without a socket."""
