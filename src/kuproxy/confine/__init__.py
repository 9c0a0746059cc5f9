"""What a process may still do once it has begun: capabilities (privilege.py) and system calls (seccomp.py);
and how it ends (lifetime.py).

The standard library alone, because the keeper uses it too.  docs/privileges.md tells who keeps what, and why.
"""
