"""The demo: real kernels, real builds, and the kernel as the judge of what the hub shipped."""
