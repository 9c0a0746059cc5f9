"""The language of the `ku` command in VPP's words: its grammar and the text of `show`."""
