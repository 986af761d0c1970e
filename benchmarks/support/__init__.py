"""What strop can do with every architecture and combination, measured on the smallest random models: `make support`."""
