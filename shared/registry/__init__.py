"""The OCI distribution protocol: reading, copying and pushing images."""
