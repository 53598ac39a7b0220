"""How the parts are put together: the only package that imports all the others.

cli        one module a command group
console    the live console
launcher   everything on one machine: processes, broker, screen, certificates, node keys
preflight  a look at a task's data and models
reports    what commands read from the topics, and how they show it

`proxy/` and `systemd/` hold configuration for real deployments.
"""
