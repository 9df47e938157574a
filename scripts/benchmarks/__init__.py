"""What ``bench_embed`` and ``bench_train`` share and measure. No part of the tools."""
