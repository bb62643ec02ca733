"""What the programs share that compare networks: their start, results in files, pages and cards."""
