"""What is fed to the contenders: backlogs, tasks and teachers that are made up."""
