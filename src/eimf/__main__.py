from eimf.cli.main import main

raise SystemExit(main())
