"""`python -m amqpjobs`, the same as the command `amqpjobs`."""

from amqpjobs.cli import main

if __name__ == "__main__":
    main()
