"""Tasks of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness), its own code over any backend of ours."""

import socket

# What it imports brings urllib3, which takes an address of this machine for a moment to learn whether there is IPv6.
# Nothing here opens a connection, so there is nothing to learn.
_has_ipv6, socket.has_ipv6 = socket.has_ipv6, False
try:
    import urllib3.util.connection  # noqa: F401
finally:
    socket.has_ipv6 = _has_ipv6
