"""What people do to a running server: the routes of the control socket, by subject."""
