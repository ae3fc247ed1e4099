"""kvserver: an etcd-compatible key-value cluster whose memory can be predicted."""
