"""The cost of communication: bits of links, transmission time, CPU time of nodes."""
