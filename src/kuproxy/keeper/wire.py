"""What the keeper and the control process agree on.

control → keeper   {"keep": [names]} + descriptors    hold these; a name that is known is replaced
                   {"drop": [names]}                  close these
                   {"list": true}                     answered by {"kept": [names]} + descriptors, in as many
                                                      messages as it takes, the last one with "end": true
                   {"notify": "READY=1"}              for the service manager (sd_notify(3)); WATCHDOG=1 is for the
                                                      keeper alone, which has a beat of its own
"""

__all__ = ["BEGIN_ANEW", "FD_VARIABLE", "REPLACE"]

FD_VARIABLE = "KUPROXY_KEEPER"  # environment of the control process: its end of the socket pair
BEGIN_ANEW = (
    76  # exit status of one that cannot use what its predecessor left: the keeper ends, to be started again
)
REPLACE = 75  # exit status of a control process that wants a successor: EX_TEMPFAIL of sysexits.h
