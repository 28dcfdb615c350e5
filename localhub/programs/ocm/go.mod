// Open Cluster Management's API: its module carries the CRD files that the local hub applies.
module kmmhub.local/programs/ocm

go 1.26.0

require open-cluster-management.io/api v1.3.0
