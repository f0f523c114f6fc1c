"""What partitions share: dealing images to clients, clustering, stratification."""
