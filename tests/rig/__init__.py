"""What tests share: servers, processes, and made-up tasks and documents."""
