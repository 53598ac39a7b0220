"""Other ways to learn, each beside FedAvg with one thing changed."""
