// Open Cluster Management's policy framework, and its former PlacementRules: their modules carry the CRD files that
// tests check generated policies with.
module kmmhub.local/programs/ocm-policy

go 1.26.0

require (
	open-cluster-management.io/config-policy-controller v0.19.0
	open-cluster-management.io/governance-policy-propagator v0.19.0
	open-cluster-management.io/multicloud-operators-subscription v0.16.0
)
