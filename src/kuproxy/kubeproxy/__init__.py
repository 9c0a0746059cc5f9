"""Being kube-proxy: its configuration, flags, ports, metrics and events, on top of the daemon.

What an operator, a load balancer, a probe or a dashboard knows of kube-proxy is answered here in the same words;
what becomes of packets is decided elsewhere.
"""
