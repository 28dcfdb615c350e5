"""The Kubernetes API of the hub: models of its kinds, and the CustomResourceDefinitions made from them."""
