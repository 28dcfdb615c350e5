"""signer: signs the kernel modules in an artifact's image, without running anything of it.

In: sign requests. Out: a signed image, the final tag moved to it, and its digest in Postgres. The key is read when it
is used and kept nowhere. Killed at any line, its lease runs out and another signer does the same again: equal input
gives an equal digest.
"""
