"""What costs money or touches the disk: programs, metrics, calls, budget, ledger."""
