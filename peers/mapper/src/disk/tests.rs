//! Each call by what it asks for, and by what it makes of the answers.

use std::pin::Pin;

use archipelago_protocol::Epoch;

use super::*;
use crate::task::Tasks;

const US: Lineage = Lineage(5);

fn pack() -> ObjectId {
    ObjectId::pack(US, 3)
}

fn said(result: Result<u32, ErrorCode>, values: [u64; 2]) -> ObjectReply {
    ObjectReply {
        values,
        ..result.map_or_else(ObjectReply::failed, ObjectReply::done)
    }
}

/// What `call` comes to, and what it asked for, if these are the answers; pieces are of 8 KiB at most.
fn run<T: 'static, F: Future<Output = Outcome<T>>>(
    call: impl FnOnce(Rc<Disk>) -> F + 'static,
    answers: &[(ObjectReply, Vec<u8>)],
) -> (Outcome<T>, Vec<(ObjectRequest, Vec<u8>)>) {
    let scheduler = Rc::new(Scheduler::default());
    let disk = Rc::new(Disk::new(&scheduler, 8192));
    let outcome = Rc::new(RefCell::new(None));
    let (task, result) = (Rc::clone(&disk), Rc::clone(&outcome));
    scheduler.spawn(async move {
        let done = call(task).await;
        *result.borrow_mut() = Some(done);
    });
    let (mut tasks, mut asked) = (Tasks::default(), Vec::new());
    tasks.run(&scheduler);
    for (reply, answer) in answers {
        let effect = disk.next_effect();
        let Some(Effect::Object { id, request, data }) = effect else {
            panic!("it asked for {} things only", asked.len());
        };
        asked.push((request, data));
        // An answer to nothing changes nothing.
        disk.done(
            EffectId(id.0 + 1),
            ObjectReply::failed(ErrorCode::Io),
            Vec::new(),
        );
        disk.done(id, *reply, answer.clone());
        disk.done(id, ObjectReply::failed(ErrorCode::Io), Vec::new());
        tasks.run(&scheduler);
    }
    assert!(disk.effects.borrow().is_empty(), "it asks for more");
    assert_eq!(disk.requests.get(), asked.len() as u64);
    let outcome = outcome.borrow_mut().take();
    (outcome.expect("it is done"), asked)
}

fn code<T>(outcome: Outcome<T>) -> Option<ErrorCode> {
    outcome.err().map(|failure| failure.code)
}

#[test]
fn long_reads_and_writes_are_cut_and_a_short_count_is_a_failure() {
    let bytes: Vec<u8> = (0..=250).cycle().take(20_000).collect();
    let pieces = [0..8192, 8192..16384, 16384..20_000];
    let whole: Vec<_> = pieces
        .clone()
        .map(|piece| {
            let len = u32::try_from(piece.len()).unwrap();
            (ObjectReply::done(len), bytes[piece].to_vec())
        })
        .to_vec();
    let places = |asked: &[(ObjectRequest, Vec<u8>)]| -> Vec<(u64, u32)> {
        asked
            .iter()
            .map(|(request, _)| (request.offset, request.len))
            .collect()
    };
    let expected = [(4096, 8192), (12288, 8192), (20480, 3616)];
    let (read, asked) = run(
        |disk| async move { disk.read(pack(), 4096, 20_000).await },
        &whole,
    );
    assert_eq!(
        (read, places(&asked)),
        (Ok(bytes.clone()), expected.to_vec())
    );
    assert_eq!(asked[0].0.op, ObjectOp::Read);
    let data = bytes.clone();
    let write = move || {
        let data = data.clone();
        move |disk: Rc<Disk>| async move { disk.write(pack(), 4096, &data).await }
    };
    let (written, asked) = run(write(), &whole);
    assert_eq!((written, places(&asked)), (Ok(()), expected.to_vec()));
    for ((request, data), piece) in asked.iter().zip(pieces.clone()) {
        assert_eq!((request.op, request.flags), (ObjectOp::Write, 0));
        assert_eq!(*data, bytes[piece]);
    }
    for (reply, data) in [
        (ObjectReply::done(8191), 8191),
        (ObjectReply::done(8191), 8192),
        (ObjectReply::done(8192), 8191),
        (ObjectReply::failed(ErrorCode::Io), 0),
    ] {
        let answer = [(reply, vec![0; data])];
        let (read, _) = run(
            |disk| async move { disk.read(pack(), 0, 8192).await },
            &answer,
        );
        assert_eq!(code(read), Some(ErrorCode::Io), "{reply:?}, {data} bytes");
    }
    let short = [(ObjectReply::done(8191), Vec::new())];
    assert_eq!(code(run(write(), &short).0), Some(ErrorCode::Io));
}

#[test]
fn an_append_and_a_seal_carry_their_session() {
    let log = ObjectId::log(US, 3);
    let append = |reply| {
        let task = move |disk: Rc<Disk>| async move {
            disk.append(log, 8192, Generation(7), vec![5; 4096]).await
        };
        run(task, &[(reply, Vec::new())])
    };
    let (done, asked) = append(ObjectReply::done(4096));
    assert_eq!(done, Ok(Appended::Done));
    let (request, data) = &asked[0];
    assert_eq!((request.op, request.id), (ObjectOp::Append, log));
    assert_eq!((request.offset, request.token), (8192, Generation(7)));
    assert_eq!((request.len, data.as_slice()), (4096, &[5; 4096][..]));
    assert_eq!(code(append(ObjectReply::done(4095)).0), Some(ErrorCode::Io));
    let stale = ObjectReply {
        values: [12288, 0],
        ..ObjectReply::failed(ErrorCode::Stale)
    };
    let Appended::Refused { end, why } = append(stale).0.unwrap() else {
        panic!("a refused append is not done");
    };
    assert_eq!((end, why.code), (12288, ErrorCode::Stale));
    assert!(why.message.contains("another session"), "{why:?}");
    let seal = |reply| {
        let task = move |disk: Rc<Disk>| async move { disk.seal(log, Generation(8)).await };
        run(task, &[(reply, Vec::new())])
    };
    let (done, asked) = seal(ObjectReply::done(0));
    assert_eq!(done, Ok(()));
    let (request, _) = &asked[0];
    assert_eq!(
        (request.op, request.id, request.token),
        (ObjectOp::Seal, log, Generation(8))
    );
    assert_eq!(code(seal(stale).0), Some(ErrorCode::Stale));
}

#[test]
fn what_is_durable_when_acknowledged_is_never_synced() {
    let task = |disk: Rc<Disk>| async move {
        disk.set_capabilities(Capabilities::DURABLE);
        disk.write(pack(), 0, &[1; 512]).await?;
        disk.sync(pack()).await?;
        disk.sync_pool().await?;
        disk.sync_data(pack(), ObjectSize::DEFAULT, 0).await
    };
    let (synced, asked) = run(task, &[(ObjectReply::done(512), Vec::new())]);
    assert_eq!((synced, asked.len()), (Ok(()), 1));
    // Otherwise the handle of each pack would wait for a sync, until no number is left.
    let (write, _) = &asked[0];
    assert_eq!((write.op, write.flags), (ObjectOp::Write, FLAG_DURABLE));
}

#[test]
fn data_goes_by_the_size_of_its_objects() {
    let id = ObjectId::data(US, Epoch(3));
    let done = [(ObjectReply::done(4096), vec![7; 4096])];
    let size = ObjectSize::MIN;
    let (read, asked) = run(
        move |disk| async move { disk.read_data(id, size, 8192, 4096).await },
        &done,
    );
    assert_eq!((read, asked[0].0.object_size), (Ok(vec![7; 4096]), size));
    let (written, asked) = run(
        move |disk| async move { disk.write_data(id, size, 8192, &[7; 4096]).await },
        &done,
    );
    assert_eq!((written, asked[0].0.object_size), (Ok(()), size));
    let (synced, asked) = run(
        move |disk| async move { disk.sync_data(id, size, 8192).await },
        &done,
    );
    let request = asked[0].0;
    assert_eq!(
        (synced, request.op, request.id),
        (Ok(()), ObjectOp::Sync, id)
    );
    assert_eq!((request.object_size, request.offset), (size, 8192));
}

#[test]
fn heads_are_read_and_swapped_with_their_version() {
    let id = ObjectId::head(US);
    let read = |reply, data: &[u8]| {
        let answer = [(reply, data.to_vec())];
        let (read, asked) = run(
            move |disk| async move { disk.read_swapped(id).await },
            &answer,
        );
        assert_eq!(asked[0].0.len, SWAP_LEN_MAX, "room for any head");
        read
    };
    let bytes = vec![1, 2, 3];
    assert_eq!(
        read(said(Ok(3), [9, 0]), &bytes),
        Ok(Some((9, bytes.clone())))
    );
    // The memory was longer than the head.
    assert_eq!(read(said(Ok(2), [9, 0]), &bytes), Ok(Some((9, vec![1, 2]))));
    assert_eq!(code(read(said(Ok(4), [9, 0]), &bytes)), Some(ErrorCode::Io));
    assert_eq!(read(said(Err(ErrorCode::NotFound), [0; 2]), &[]), Ok(None));
    let damaged = read(said(Err(ErrorCode::Damaged), [0; 2]), &[]);
    let failure = damaged.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Damaged);
    assert!(
        failure.message.contains("is damaged"),
        "{}",
        failure.message
    );
    let swap = |reply| {
        let call = move |disk: Rc<Disk>| async move { disk.swap(id, 8, vec![1, 2, 3]).await };
        run(call, &[(reply, Vec::new())])
    };
    let (swapped, asked) = swap(said(Ok(0), [9, 0]));
    assert_eq!(swapped, Ok(9));
    assert_eq!((asked[0].0.offset, asked[0].0.len), (8, 3));
    assert_eq!(asked[0].1, [1, 2, 3]);
    let (stale, _) = swap(said(Err(ErrorCode::Stale), [9, 0]));
    assert_eq!(code(stale), Some(ErrorCode::Stale));
}

#[test]
fn a_failed_sync_is_final_but_for_what_is_known_beforehand() {
    for (answered, becomes) in [
        (ErrorCode::Io, ErrorCode::SyncFailed),
        (ErrorCode::NotFound, ErrorCode::SyncFailed),
        (ErrorCode::NoSpace, ErrorCode::NoSpace),
        (ErrorCode::NoDescriptors, ErrorCode::NoDescriptors),
        (ErrorCode::NoMemory, ErrorCode::SyncFailed),
        (ErrorCode::Stale, ErrorCode::Stale),
    ] {
        let answer = [(ObjectReply::failed(answered), Vec::new())];
        let (object, _) = run(|disk| async move { disk.sync(pack()).await }, &answer);
        let (pool, asked) = run(|disk| async move { disk.sync_pool().await }, &answer);
        let data = |disk: Rc<Disk>| async move {
            let id = ObjectId::data(US, Epoch(3));
            disk.sync_data(id, ObjectSize::MIN, 0).await
        };
        let (data, _) = run(data, &answer);
        assert_eq!(asked[0].0.op, ObjectOp::SyncPool);
        assert_eq!([object, pool, data].map(code), [Some(becomes); 3]);
    }
    let done = [(ObjectReply::done(0), Vec::new())];
    let (synced, asked) = run(|disk| async move { disk.sync(pack()).await }, &done);
    assert_eq!(
        (synced, asked[0].0.op, asked[0].0.id),
        (Ok(()), ObjectOp::Sync, pack())
    );
}

/// What a sync comes to that succeeds after a sync of the pool, begun beside it, has failed; and one that is begun then.
fn beside_a_failed_sync_of_the_pool<F: Future<Output = Outcome<()>> + 'static>(
    sync: impl Fn(Rc<Disk>) -> F,
) -> [Option<ErrorCode>; 2] {
    let scheduler = Rc::new(Scheduler::default());
    let disk = Rc::new(Disk::new(&scheduler, 8192));
    let mut tasks = Tasks::default();
    let outcomes = Rc::new(RefCell::new(Vec::new()));
    let start = |tasks: &mut Tasks, synced: Pin<Box<dyn Future<Output = Outcome<()>>>>| {
        let outcomes = Rc::clone(&outcomes);
        scheduler.spawn(async move {
            let synced = synced.await;
            outcomes.borrow_mut().push(code(synced));
        });
        tasks.run(&scheduler);
        let effect = disk.next_effect();
        let Some(Effect::Object { id, .. }) = effect else {
            panic!("it asks for nothing");
        };
        id
    };
    let beside = start(&mut tasks, Box::pin(sync(Rc::clone(&disk))));
    let pool = Rc::clone(&disk);
    let fails = start(&mut tasks, Box::pin(async move { pool.sync_pool().await }));
    disk.done(fails, ObjectReply::failed(ErrorCode::Io), Vec::new());
    disk.done(beside, ObjectReply::done(0), Vec::new());
    tasks.run(&scheduler);
    let after = start(&mut tasks, Box::pin(sync(Rc::clone(&disk))));
    disk.done(after, ObjectReply::done(0), Vec::new());
    tasks.run(&scheduler);
    let failed = Some(ErrorCode::SyncFailed);
    match outcomes.borrow()[..] {
        // The two that ended together, whichever was first.
        [one, other, after] if one == failed || other == failed => [one.and(other), after],
        ref outcomes => panic!("{outcomes:?}"),
    }
}

#[test]
fn a_sync_beside_a_failed_sync_of_the_pool_has_failed_too() {
    let failed = [Some(ErrorCode::SyncFailed), None];
    let object = |disk: Rc<Disk>| async move { disk.sync(pack()).await };
    assert_eq!(beside_a_failed_sync_of_the_pool(object), failed);
    let pool = |disk: Rc<Disk>| async move { disk.sync_pool().await };
    assert_eq!(beside_a_failed_sync_of_the_pool(pool), failed);
    let data = |disk: Rc<Disk>| async move {
        let id = ObjectId::data(US, Epoch(3));
        disk.sync_data(id, ObjectSize::MIN, 0).await
    };
    assert_eq!(beside_a_failed_sync_of_the_pool(data), failed);
}

#[test]
#[should_panic(expected = "pages of maps go with their lineage")]
fn pages_of_a_map_that_may_be_walked_are_not_deleted() {
    let _panics = run(|disk| async move { disk.delete(pack()).await }, &[]);
}

#[test]
fn deletes_lists_and_figures_are_asked_for_and_taken_as_told() {
    let done = [(ObjectReply::done(0), Vec::new())];
    let (deleted, asked) = run(
        |disk| async move { disk.delete_leaked(pack()).await },
        &done,
    );
    assert_eq!(
        (deleted, asked[0].0.op, asked[0].0.id),
        (Ok(()), ObjectOp::Delete, pack())
    );
    let of_catalogue = ObjectId::pack(Lineage::CATALOGUE, 3);
    let (deleted, asked) = run(
        move |disk| async move { disk.delete(of_catalogue).await },
        &done,
    );
    assert_eq!((deleted, asked[0].0.id), (Ok(()), of_catalogue));
    let (deleted, asked) = run(|disk| async move { disk.delete_lineage(US).await }, &done);
    assert_eq!((deleted, asked[0].0.op), (Ok(()), ObjectOp::DeleteLineage));
    assert_eq!(asked[0].0.id.lineage, US);

    let figures = [(said(Ok(0), [10, 20]), Vec::new())];
    let missing = [(ObjectReply::failed(ErrorCode::NotFound), Vec::new())];
    let failed = [(ObjectReply::failed(ErrorCode::Io), Vec::new())];
    let occupied =
        |answers: &[_]| run(|disk| async move { disk.occupied(pack()).await }, answers).0;
    assert_eq!(occupied(&figures), Ok(Some(10)));
    assert_eq!(occupied(&missing), Ok(None));
    assert_eq!(code(occupied(&failed)), Some(ErrorCode::Io));
    let len = |answers: &[_]| run(|disk| async move { disk.len(pack()).await }, answers).0;
    assert_eq!(len(&figures), Ok(20));
    assert_eq!(code(len(&missing)), Some(ErrorCode::NotFound));
    let (pool, asked) = run(|disk| async move { disk.stat_pool().await }, &figures);
    assert_eq!((pool, asked[0].0.op), (Ok([10, 20]), ObjectOp::StatPool));

    let ids = [ObjectId::log(US, 1), pack()];
    let bytes = ids.map(ObjectId::to_bytes).concat();
    let list = |answered: u32, bytes: &[u8]| {
        let answer = [(ObjectReply::done(answered), bytes.to_vec())];
        run(
            |disk| async move { disk.list_above(ObjectId::head(US)).await },
            &answer,
        )
    };
    let (listed, asked) = list(64, &bytes);
    assert_eq!((listed, asked[0].0.len), (Ok(ids.to_vec()), 16_384));
    assert_eq!(list(0, &[]).0, Ok(Vec::new()));
    assert_eq!(code(list(63, &bytes).0), Some(ErrorCode::Io));
    assert_eq!(code(list(63, &bytes[..63]).0), Some(ErrorCode::Io));

    let holds = |answers: &[_]| run(|disk| async move { disk.holds_volumes().await }, answers);
    let (none, asked) = holds(&done);
    assert_eq!(
        (none, asked[0].0.op, asked[0].0.len),
        (Ok(false), ObjectOp::List, 32)
    );
    assert_eq!(asked[0].0.id.number, u64::MAX);
    let some = [(ObjectReply::done(32), bytes[..32].to_vec())];
    assert_eq!(holds(&some).0, Ok(true));
    assert_eq!(code(holds(&failed).0), Some(ErrorCode::Io));
}

#[test]
fn objects_are_named_for_people() {
    let us = "00000000000000000000000000000005";
    for (id, name) in [
        (
            ObjectId::data(US, Epoch(3)),
            format!("data of epoch 3 of {us}"),
        ),
        (ObjectId::head(US), format!("head of {us}")),
        (pack(), format!("pack 3 of {us}")),
        (
            ObjectId::log(Lineage::CATALOGUE, 1),
            "log 1 of the catalogue".to_owned(),
        ),
    ] {
        assert_eq!(name_of(id), name);
    }
    let failure = failed(ObjectOp::Read, pack(), ErrorCode::Io);
    assert_eq!(
        failure.message,
        format!("reading pack 3 of {us} failed: input or output error")
    );
}
