"""The reference's side: basicsr 1.4.2 in an environment of its own, which `setup.sh` makes."""
