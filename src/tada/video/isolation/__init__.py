"""Videos of strangers: each is decoded in a process of its own, within limits. Servers and the page open them so."""
