"""admission: the optional validating webhook for ManagedClusterModules.

In: AdmissionReviews of the hub's API server. Out: allowed or not, with what to write instead, and warnings. It refuses
what the CRD's own rules cannot say; a hub without it shows the same as a condition. It stores and reads nothing but its
certificate.
"""
