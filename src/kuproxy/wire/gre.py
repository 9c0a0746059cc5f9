"""GRE (RFC 2784) without checksum, key or sequence number: two zero bytes and the EtherType of what follows."""

PROTOCOL = 47
HEADER = 4
TYPE = 2  # offset of the EtherType
