"""What batch jobs are compared with: programs that know nothing of ours, called as `PROGRAM INPUT
OUTPUT MODEL PROCESSES`."""
