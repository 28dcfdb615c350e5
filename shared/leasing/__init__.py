"""Work under a lease: how builders and signers take, keep, finish and give back an artifact."""
