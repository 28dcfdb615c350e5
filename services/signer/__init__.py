"""The signer: takes a built image by digest, signs the kernel modules in it, pushes the result, moves the final tag."""
