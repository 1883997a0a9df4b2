//! Suites that compare gristmill with peers and with the machine.
