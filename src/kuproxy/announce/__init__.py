"""Telling the network which VIPs this node serves: by BGP through ExaBGP, or on a link by ARP and neighbour discovery.

    control ── wanted ──► daemon.announcing ── POST /v1/announce ──► judge ──► exabgp.Dialogue ──► ExaBGP ──► router
                                              (a process of its own)      └──► claim.Claim ──► frames ──► the link

What to announce is a pure function of the VIPs (`wanted`), asked for by speakers that live apart from the daemon: a
route must outlive an upgrade of control, and must not outlive forwarding (docs/adr/032-announcing.md).
"""
