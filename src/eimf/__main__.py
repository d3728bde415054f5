from eimf.cli import main

raise SystemExit(main())
