"""What every process agrees on. Imports nothing else of ours, no faust and no flwr."""
